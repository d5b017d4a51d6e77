"""An autoencoder that also tells the class of what it sees: two tasks, one code."""

from torch import Tensor, nn
from torch.nn.functional import relu


class Reader(nn.Module):
    """Three linear layers: an image to a code, the code back to an image, and the code to the scores of classes."""

    def __init__(self, pixels: int = 28 * 28, code: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(pixels, code), nn.Linear(code, pixels)
        self.classifier = nn.Linear(code, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 1, 28, 28] to such images and logits [N, classes]."""
        code = relu(self.encoder(images.flatten(1)))
        return self.decoder(code).view_as(images), self.classifier(code)
