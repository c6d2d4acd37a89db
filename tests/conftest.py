"Two workers take whole files: those that take minutes come first, so that neither is left alone with one at the end."
SLOW = ("engine", "dashboard", "conformance", "resume", "kills", "campaign", "studies", "faults", "board", "training_faults", "damage", "session")


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}.py": i for i, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.name, len(SLOW)))
