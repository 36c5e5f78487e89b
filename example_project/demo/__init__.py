"""The demo: runs the shop, kills its workers at random moments, and checks everybody's books afterwards."""
