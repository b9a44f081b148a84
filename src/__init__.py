"""Training framework for SpaText, spatio-textual representation for image generation."""

__version__ = "0.1.0"
