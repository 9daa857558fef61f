"""Easel: a text-to-image service for Intel and Axera hardware."""

__version__ = "0.1.0"
