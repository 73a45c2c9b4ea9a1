"""Monte Carlo tree search over protocols only; trees and their flat records."""
