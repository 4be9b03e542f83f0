"""What unlearning takes out and may have to bring back: keys and sealed deposits."""
