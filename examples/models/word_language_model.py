"""The word language model of PyTorch's examples (Zaremba et al. 2014, arXiv 1409.2329), small."""

from torch import Tensor, nn


class WordLanguageModel(nn.Module):
    """An embedding (`encoder`), a two-layer LSTM (`rnn`) and a linear layer over the vocabulary (`decoder`)."""

    def __init__(self, words: int, width: int = 32, layers: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(words, width)
        self.rnn = nn.LSTM(width, width, layers, dropout=dropout, batch_first=True)
        self.decoder = nn.Linear(width, words)

    def forward(self, text: Tensor) -> Tensor:
        """Words [N, T] to the logits of each next word [N, words, T]."""
        states, _ = self.rnn(self.drop(self.encoder(text)))
        logits: Tensor = self.decoder(self.drop(states))
        return logits.transpose(1, 2)
