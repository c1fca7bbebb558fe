"""Host side: text to numbers, with numpy and regex alone. Nothing here knows of Tensors."""
