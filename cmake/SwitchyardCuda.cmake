# CUDA is compiled when nvcc 12.8 or newer is present. SWITCHYARD_CUDA says whether it is.

set(SWITCHYARD_CUDA OFF)
if(NOT SWITCHYARD_ENABLE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  if(NOT DEFINED CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
  endif()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    # Machine code for Hopper; every other GPU from 8.0 compiles the PTX once and caches it.
    set(CMAKE_CUDA_ARCHITECTURES 80-virtual 90a-real)
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
      set(SWITCHYARD_CUDA ON)
      find_package(CUDAToolkit REQUIRED)
      message(STATUS "CUDA backend: nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
    else()
      message(STATUS "CPU-only build: nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.8")
    endif()
  else()
    message(STATUS "CPU-only build: no nvcc found")
  endif()
  if(SWITCHYARD_ENABLE_CUDA STREQUAL "ON" AND NOT SWITCHYARD_CUDA)
    message(FATAL_ERROR "SWITCHYARD_ENABLE_CUDA is ON; it needs nvcc 12.8 or newer")
  endif()
else()
  message(STATUS "CPU-only build: SWITCHYARD_ENABLE_CUDA is OFF")
endif()

function(switchyard_cuda_options target)
  target_compile_options(${target} PRIVATE
    # --fmad=false for the reason of -ffp-contract=off: kernels ask for fma where they mean it.
    $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;-lineinfo;--fmad=false;--expt-relaxed-constexpr;-Xcompiler=-fvisibility=hidden>
    $<$<AND:$<BOOL:${SWITCHYARD_WERROR}>,$<COMPILE_LANGUAGE:CUDA>>:-Werror=all-warnings>)
endfunction()

function(switchyard_add_cuda_backend)
  file(GLOB cuda_sources CONFIGURE_DEPENDS src/cuda/*.cu src/cuda/*.cpp src/cuda/sm90/*.cpp)
  target_sources(switchyard PRIVATE ${cuda_sources})
  # wgmma and the copy engine exist for sm_90a alone, so these kernels are compiled for nothing else.
  file(GLOB sm90_sources CONFIGURE_DEPENDS src/cuda/sm90/*.cu)
  if(sm90_sources)
    add_library(switchyard_sm90 OBJECT ${sm90_sources})
    set_target_properties(switchyard_sm90 PROPERTIES CUDA_ARCHITECTURES 90a-real
                          POSITION_INDEPENDENT_CODE ON CUDA_RUNTIME_LIBRARY Static)
    target_include_directories(switchyard_sm90 PRIVATE include src)
    target_link_libraries(switchyard_sm90 PRIVATE switchyard_options fmt::fmt-header-only)
    switchyard_cuda_options(switchyard_sm90)
    target_sources(switchyard PRIVATE $<TARGET_OBJECTS:switchyard_sm90>)
  endif()
  # cudart is static and opens libcuda at run time, so the same binary starts on a machine without a driver.
  target_link_libraries(switchyard PRIVATE $<BUILD_INTERFACE:CUDA::cudart_static>)
  target_compile_definitions(switchyard PRIVATE SWITCHYARD_HAS_CUDA=1)
  set_target_properties(switchyard PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  switchyard_cuda_options(switchyard)
endfunction()
