"""napari plugin of cDAL: see napari.yaml for what it contributes."""
