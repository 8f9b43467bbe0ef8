"""From a user's pictures to classes: pictures to 28 x 28, inputs, the classifier, the command, bulk prediction."""
