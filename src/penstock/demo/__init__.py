"""The main job on a small scale: raw text to a trained model, interrupted and resumed, with proof."""
