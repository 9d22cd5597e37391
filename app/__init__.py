"""Edit Image Service: self-hosted image generation and editing."""

__version__ = "0.4.0"
