"""What is said to a vision-language model and how its replies are read and rewarded; without torch."""
