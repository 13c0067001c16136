"""The version, read by the build and by every manifest we write."""

__version__ = "0.1.0"
