# doge_add_test(NAME name NEED cpu|gpu COMMAND command...)
#
# NEED is the ctest label: what the machine must have. A test that misses its need prints why and exits 77, which ctest
# counts as skipped.
function(doge_add_test)
    cmake_parse_arguments(PARSE_ARGV 0 test "" "NAME;NEED" "COMMAND")
    if(NOT test_NEED MATCHES "^(cpu|gpu)$")
        message(FATAL_ERROR "${test_NAME}: NEED is '${test_NEED}', not cpu or gpu")
    endif()
    add_test(NAME ${test_NAME} COMMAND ${test_COMMAND})
    set_tests_properties(${test_NAME} PROPERTIES LABELS ${test_NEED} SKIP_RETURN_CODE 77 TIMEOUT 120)
endfunction()

# doge_skip_test(NAME name NEED label REASON text): a test that cannot be built here; it is counted as skipped.
function(doge_skip_test)
    cmake_parse_arguments(PARSE_ARGV 0 test "" "NAME;NEED;REASON" "")
    doge_add_test(NAME ${test_NAME} NEED ${test_NEED} COMMAND sh -c "echo 'skipped: ${test_REASON}'; exit 77")
endfunction()
