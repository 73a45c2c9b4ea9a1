"""One conversation: seeker, supporter, strategist, critic, environment and rollout; dialogue in, dialogue out."""
