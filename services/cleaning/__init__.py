"""Cleaning: raw records to clean ones, and clean ones to versioned, content-addressed data sets."""
