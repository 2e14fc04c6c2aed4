"""The networks' parts: attention, blocks, the UNet."""
