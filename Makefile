# Thin: CMake presets do the work. `make demo` and `make test` each do all the set-up they need.
.DEFAULT_GOAL := demo
.PHONY: demo test setup sanitize fuzz format tidy clean

demo: setup
	cmake --preset demo
	cmake --build --preset demo
	scripts/demo.sh build/demo/cli/switchyard

test: setup
	cmake --preset test
	cmake --build --preset test
	python3 scripts/gpu_record_age.py
	ctest --preset test -j $$(nproc)

setup:
	@scripts/setup.sh

# What CONTRIBUTING.md asks for before a change lands.
sanitize: setup
	for preset in cpu-asan cpu-tsan; do \
	  cmake --preset $$preset && cmake --build --preset $$preset && \
	  ctest --preset $$preset -j $$(nproc) || exit 1; \
	done

fuzz: setup
	scripts/fuzz.sh 60

format:
	git ls-files '*.h' '*.cpp' '*.c' '*.cu' '*.cuh' ':!src/cuda/sm90/wgmma.cuh' | xargs clang-format -i

tidy: setup
	cmake --preset cpu
	git ls-files 'src/*.cpp' 'cli/*.cpp' | grep -v '_avx' | xargs -P $$(nproc) -n 1 clang-tidy -p build/cpu --quiet

clean:
	rm -rf build
