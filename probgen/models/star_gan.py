"""StarGAN: one network that changes rows to whatever attributes are asked for."""
