"""One verb, one script, one root yaml of the same name in conf/: `run(config, output_dir) -> Report`."""
