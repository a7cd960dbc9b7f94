# Builds and runs the examples as a foreign project. -DMODE=install: against the installed build tree
# BUILD, also through pkg-config; -DMODE=subdirectory: against the sources.

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY
    OUTPUT_VARIABLE output ECHO_OUTPUT_VARIABLE)
  set(output "${output}" PARENT_SCOPE)
endfunction()

# What 02_c_api.c computes: 2 x^2, -x^2 and half of 2 max(0, x)^2.
function(expect_c_output)
  if(NOT output STREQUAL "2 8 18 32\n-1 -4 -9 -16\n0 25 0 1\n")
    message(FATAL_ERROR "02_c_api printed\n${output}")
  endif()
endfunction()

set(prefix ${WORK}/prefix)
set(flags "")
set(build_type Release)
if(SANITIZE)
  set(flags -fsanitize=${SANITIZE})
endif()
if(MODE STREQUAL "install")
  file(REMOVE_RECURSE ${WORK})
  run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix})
  set(arguments -DCMAKE_PREFIX_PATH=${prefix})
else()
  set(build_type Debug)  # compiles the library again; this is the quicker and the untested way
  set(arguments -DSWITCHYARD_SOURCE=${SOURCE} -DSWITCHYARD_ENABLE_CUDA=OFF
    -DSWITCHYARD_WERROR=${WERROR} -DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER})
endif()

run(${CMAKE_COMMAND} -G ${GENERATOR} -S ${SOURCE}/tests/api/consumer -B ${WORK}/build
  -DEXAMPLES=${SOURCE}/examples -DCMAKE_BUILD_TYPE=${build_type} -DCMAKE_C_COMPILER=${CC}
  -DCMAKE_CXX_COMPILER=${CXX} "-DCMAKE_C_FLAGS=${flags}" "-DCMAKE_CXX_FLAGS=${flags}" ${arguments})
run(${CMAKE_COMMAND} --build ${WORK}/build --parallel 2)
run(${WORK}/build/01_cpp ${SOURCE}/fixtures/mixtral 0)
# As the reference backend has it, to four places.
if(NOT output MATCHES "= -0\\.1349 -0\\.0101 0\\.3979 -0\\.2451\n")
  message(FATAL_ERROR "01_cpp printed other numbers")
endif()
run(${WORK}/build/02_c_api)
expect_c_output()

find_program(pkg_config pkg-config)
if(MODE STREQUAL "install" AND pkg_config)
  file(GLOB_RECURSE pc ${prefix}/*/switchyard.pc)
  cmake_path(GET pc PARENT_PATH pc_dir)
  set(ENV{PKG_CONFIG_PATH} ${pc_dir})
  run(${pkg_config} --cflags --libs switchyard)
  separate_arguments(libs UNIX_COMMAND "${output}")
  cmake_path(GET pc_dir PARENT_PATH lib_dir)
  run(${CC} -std=c11 ${flags} ${SOURCE}/examples/02_c_api.c ${libs} -Wl,-rpath,${lib_dir}
    -o ${WORK}/by_pkg_config)
  run(${WORK}/by_pkg_config)
  expect_c_output()
endif()
