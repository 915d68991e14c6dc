"""Pure tensor functions: hidden states, head and labels in, a summed loss out."""
