"""The models: autoencoder, text encoders, and what joins them to the UNet."""
