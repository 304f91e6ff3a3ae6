"""Feature spaces and what is done in them: distances between image sets, a classifier, coresets."""
