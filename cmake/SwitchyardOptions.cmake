# Flags of our own targets only; nothing here reaches a project that uses us.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(SWITCHYARD_CCACHE ccache)
if(SWITCHYARD_CCACHE AND PROJECT_IS_TOP_LEVEL)
  foreach(language C CXX CUDA)
    if(NOT DEFINED CMAKE_${language}_COMPILER_LAUNCHER)
      set(CMAKE_${language}_COMPILER_LAUNCHER ${SWITCHYARD_CCACHE})
    endif()
  endforeach()
endif()

add_library(switchyard_options INTERFACE)
# -ffp-contract=off: a product and a sum fuse only where the source says fma, so bits do not depend on the compiler.
target_compile_options(switchyard_options INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Wconversion;-Wshadow;-ffp-contract=off>
  $<$<COMPILE_LANGUAGE:CXX>:-fvisibility=hidden;-fvisibility-inlines-hidden>
  $<$<AND:$<BOOL:${SWITCHYARD_WERROR}>,$<COMPILE_LANGUAGE:C,CXX>>:-Werror>)
if(SWITCHYARD_SANITIZE)
  target_compile_options(switchyard_options INTERFACE
    $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${SWITCHYARD_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all;-g1>)
  target_link_options(switchyard_options INTERFACE -fsanitize=${SWITCHYARD_SANITIZE})
  # Instrumentation makes g++ 12 see uninitialised members inside std::function that are not.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(switchyard_options INTERFACE
      $<$<COMPILE_LANGUAGE:C,CXX>:-Wno-maybe-uninitialized>)
  endif()
endif()

# One translation unit per ISA level; the suffix of the file names it. Everything else is plain x86-64.
function(switchyard_set_isa_flags)
  set(avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512cd)
  foreach(source IN LISTS ARGN)
    if(source MATCHES "_avx2\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${avx2}")
    elseif(source MATCHES "_avx2_vnni\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${avx2};-mavxvnni")
    elseif(source MATCHES "_avx512\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${avx512}")
    elseif(source MATCHES "_avx512_vnni\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${avx512};-mavx512vnni")
    elseif(source MATCHES "_avx512_bf16\\.cpp$")
      set_source_files_properties(${source} PROPERTIES
        COMPILE_OPTIONS "${avx512};-mavx512vnni;-mavx512vbmi;-mavx512bf16")
    elseif(source MATCHES "_avx512_amx\\.cpp$")
      set_source_files_properties(${source} PROPERTIES
        COMPILE_OPTIONS "${avx512};-mavx512vnni;-mavx512vbmi;-mavx512bf16;-mamx-tile;-mamx-int8")
    endif()
  endforeach()
endfunction()
