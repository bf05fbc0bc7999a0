"""What a family makes of pictures before its tower sees them: arrays, and the text that stands for them."""
