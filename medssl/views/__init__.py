"""Raw crops to views, batched on the device: geometry first, then intensity."""
