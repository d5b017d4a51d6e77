"""One torch thread: more of them on a busy machine make small training many times slower."""

import torch

torch.set_num_threads(1)
