# Forebay on containers (Windows): makes deploy\compose\.env and an API key once, then starts.
#   scripts\up.ps1         gateways, workers, Valkey, PostgreSQL, Prometheus, Grafana
#   scripts\up.ps1 -Gpu    and a language model on the GPU (docs/howto/gpu-8gb.md)
param([switch]$Gpu)
$ErrorActionPreference = "Stop"
Set-Location (Join-Path $PSScriptRoot "..\deploy\compose")
if (-not (Get-Command docker -ErrorAction SilentlyContinue)) { throw "docker is not installed" }
$gpuArguments = @()
if ($Gpu) { $gpuArguments = @("--profile", "gpu") }

function New-Secret {
    $bytes = [byte[]]::new(24)
    $random = [System.Security.Cryptography.RandomNumberGenerator]::Create()
    $random.GetBytes($bytes)
    -join ($bytes | ForEach-Object { $_.ToString("x2") })
}

if (-not (Test-Path ".env")) { Copy-Item ".env.example" ".env"; Write-Host "made deploy\compose\.env" }
$lines = Get-Content ".env" | ForEach-Object {
    if ($_ -match "^(VALKEY_PASSWORD|POSTGRES_PASSWORD|GRAFANA_PASSWORD)=$") { "$($Matches[1])=$(New-Secret)" } else { $_ }
}
[System.IO.File]::WriteAllLines((Join-Path (Get-Location) ".env"), $lines)

New-Item -ItemType Directory -Force "..\..\models" | Out-Null
docker compose @gpuArguments build
if ($LASTEXITCODE -ne 0) { throw "the images could not be built" }
function Invoke-Container([string]$command) {
    docker compose run --rm --no-deps -T --entrypoint sh gateway-a -c $command
}
# Without double quotes: PowerShell before 7.3 loses them on the way to a program.
Invoke-Container '[ -s $FOREBAY_SERVER_KEYS_FILE ]'
if ($LASTEXITCODE -ne 0) {
    Write-Host "an API key, shown once:"
    Invoke-Container 'forebay keys create --scope admin'
}
Invoke-Container 'f=$FOREBAY_SERVER_DATA_DIR/prometheus.key; [ -s $f ] || forebay keys create --scope admin prometheus > $f'
if ($LASTEXITCODE -ne 0) { throw "no API key could be made" }
docker compose @gpuArguments up -d
if ($LASTEXITCODE -ne 0) { throw "not everything started: docker compose ps" }
Write-Host "http://localhost/  (Grafana: http://localhost:3001/)"
