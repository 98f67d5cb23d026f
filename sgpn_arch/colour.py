"""How light colours are."""

LUMA = (0.299, 0.587, 0.114)  # Rec. 601's weights of red, green and blue, which OpenCV and JPEG use
