"""Trains the demo model: `python -m axion.demo.train`."""
