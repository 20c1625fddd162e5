"""The stages of a round: arrays and frames in, arrays and frames out."""
