"""Dialogues with a vision-language model: prompts, parsed replies, rewards, rollouts on disk; all without torch."""
