"""Chat models behind one seam: local transformers, OpenAI-compatible endpoints, the scripted fake; and trained heads."""
