"""Allowed configs of a space at random: listing a space of millions for one of them takes seconds."""

from autotune.data import Config

#: Draws for each config wanted: of the present spaces every 60th is allowed at worst.
DRAWS = 2000


def drawn(space, problem, where, random, wanted, takes=lambda config: True):
    """``wanted`` different allowed configs that ``takes`` accepts, or fewer where they are not to be found."""
    if space.unsupported(problem, where) is not None:
        return []
    ranges, found = space.params(problem, where), {}
    for _ in range(DRAWS * wanted):
        if len(found) == wanted:
            break
        values = {name: random.choice(values) for name, values in ranges.items()}
        config = Config(space.settle(values, problem, where, ranges))
        if space.broken_rule(config, problem, where) is None and takes(config):
            found[config] = None
    return list(found)
