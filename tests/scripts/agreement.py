"""Makes tests/fixtures/agreement.json: pairwise agreement and Krippendorff's alpha of random rankings with ties.

    pip install krippendorff
    python tests/scripts/agreement.py > tests/fixtures/agreement.json

A unit is a prompt with an unordered pair of its responses. The package knows ordered values only, so each unit is given
twice, once in each direction.
"""

import itertools
import json
import random

import krippendorff
import numpy as np


def sign(ranks, i, j):
    return (ranks[j] > ranks[i]) - (ranks[j] < ranks[i])


def case(seed):
    rng = random.Random(seed)
    n_tasks, n_labelers, k = rng.randint(2, 6), rng.randint(2, 5), rng.randint(2, 6)
    votes = []
    for task in range(n_tasks):
        truth = [rng.random() for _ in range(k)]
        for labeler in rng.sample(range(n_labelers), rng.randint(1, n_labelers) if task else n_labelers):
            noisy = [round(3 * (x + rng.gauss(0, 0.3))) for x in truth]
            ranks = [1 + sum(other > x for other in noisy) for x in noisy]
            votes.append((task, labeler, ranks))
    columns, agreed = [], []
    for task in range(n_tasks):
        of_task = [(labeler, ranks) for t, labeler, ranks in votes if t == task]
        for i, j in itertools.combinations(range(k), 2):
            for a, b in ((i, j), (j, i)):
                column = [np.nan] * n_labelers
                for labeler, ranks in of_task:
                    column[labeler] = sign(ranks, a, b)
                columns.append(column)
            if len(of_task) > 1:
                for (_, x), (_, y) in itertools.combinations(of_task, 2):
                    agreed.append(1 - abs(sign(x, i, j) - sign(y, i, j)) / 2)
    alpha = krippendorff.alpha(np.array(columns).T, level_of_measurement="interval")
    return {"votes": votes, "alpha": float(alpha), "pairwise": sum(agreed) / len(agreed)}


def main():
    print("[\n" + ",\n".join(json.dumps(case(seed)) for seed in range(12)) + "\n]")


main()
