"""The official evaluation rules as plain functions on numbers."""
