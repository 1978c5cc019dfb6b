"""Kaggle: the competition's data here, and plans as notebooks there, over the real `kaggle` client."""
