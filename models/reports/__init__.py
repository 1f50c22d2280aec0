"""What a training run or an evaluation looked like, as a page."""
