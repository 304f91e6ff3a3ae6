"""Long runs: training a generator, and distilling pixels or latents."""
