// Anchors the support library; helpers live beside it.
