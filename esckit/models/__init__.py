"""Chat models behind one seam (local, endpoint, scripted), and what esckit trains on top of backbones."""
