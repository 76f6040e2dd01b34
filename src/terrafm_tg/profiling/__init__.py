"""Time, memory and arithmetic of a training step (``terrafm profile``)."""
