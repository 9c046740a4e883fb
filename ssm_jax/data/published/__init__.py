"""Published data sets: checked whole, then made into folders to train on."""
