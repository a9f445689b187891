import random

import numpy as np
import torch

from clearhead.train.state import random_state, restore_random_state


def draw():
    return random.gauss(0, 1), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()


def test_every_generator_goes_on_where_it_was():
    draw()
    tensors, document = random_state()
    first = draw()
    draw()
    restore_random_state(tensors, document)
    assert draw() == first
