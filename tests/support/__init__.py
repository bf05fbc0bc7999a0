"""What tests share: fakes, servers in processes, corpora, walkers."""
