"""A thin package under numbered notebooks: from four street views to a US state and a point on the globe."""

__version__ = "0.1.0"
