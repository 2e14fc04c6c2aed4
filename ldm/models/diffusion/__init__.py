"""Noise schedule, denoiser, guidance, spacings and samplers."""
