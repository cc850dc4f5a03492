"""cDAL: few-step conditional diffusion for medical image segmentation.

Importing the package loads no heavy library; import what you need from its modules.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
