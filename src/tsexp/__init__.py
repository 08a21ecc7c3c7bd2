"""Energy, accuracy and latency of compressed models for time series, measured on what would be deployed."""

__version__ = "0.1.0"
