import {
  ActionIcon,
  AppShell,
  Badge,
  Burger,
  Group,
  Loader,
  NavLink,
  Text,
  Tooltip,
  useComputedColorScheme,
  useMantineColorScheme,
} from '@mantine/core'
import { useDisclosure } from '@mantine/hooks'
import { IconAdjustmentsHorizontal, IconCpu, IconCube, IconHome, IconMoon, IconPlayerPlay, IconPlugConnected, IconRoute, IconSun } from '@tabler/icons-react'
import { Suspense, lazy, useEffect, type ReactNode } from 'react'
import { useLiveObjects } from './live'
import { Empty } from './Parts'
import { usePlace } from './router'
import { SessionMenu } from './Session'
import { EndpointPage, Endpoints } from './pages/Endpoints'
import { Home } from './pages/Home'
import { Models } from './pages/Models'
import { Pipelines } from './pages/Pipelines'
import { Runs } from './pages/Runs'

// What most visits do not need comes when it is asked for; the graph is the heaviest.
const Run = lazy(() => import('./pages/Run'))
const PipelinePage = lazy(() => import('./pages/PipelinePage'))
const Training = lazy(() => import('./pages/Training').then((found) => ({ default: found.Training })))
const JobPage = lazy(() => import('./pages/Training').then((found) => ({ default: found.JobPage })))
const Tuning = lazy(() => import('./pages/Tuning').then((found) => ({ default: found.Tuning })))
const SearchPage = lazy(() => import('./pages/Tuning').then((found) => ({ default: found.SearchPage })))

const MENU = [
  { path: '', label: 'Home', icon: IconHome },
  { path: 'runs', label: 'Runs', icon: IconPlayerPlay },
  { path: 'pipelines', label: 'Pipelines', icon: IconRoute },
  { path: 'training', label: 'Training', icon: IconCpu },
  { path: 'tuning', label: 'Tuning', icon: IconAdjustmentsHorizontal },
  { path: 'models', label: 'Models', icon: IconCube },
  { path: 'endpoints', label: 'Endpoints', icon: IconPlugConnected },
]

function page(path: string[]): ReactNode {
  const [section = '', second, third, fourth, fifth] = path
  if (section === '') return <Home />
  if (section === 'runs' && second === 'details' && third) return <Run key={third} id={third} />
  if (section === 'runs') return <Runs />
  if (section === 'experiments' && second === 'details' && third) return <Runs key={third} experiment={third} />
  if (section === 'experiments') return <Runs />
  if (section === 'pipelines' && second === 'details' && third) return <PipelinePage key={third} id={third} version={fifth} />
  if (section === 'pipelines') return <Pipelines />
  if (section === 'training' && second && third && fourth) return <JobPage key={path.join('/')} kind={second} namespace={third} name={fourth} />
  if (section === 'training') return <Training />
  if (section === 'tuning' && second && third && fourth) return <SearchPage key={path.join('/')} kind={second} namespace={third} name={fourth} />
  if (section === 'tuning') return <Tuning />
  if (section === 'models') return <Models model={second} />
  if (section === 'endpoints' && second && third) return <EndpointPage key={`${second}/${third}`} namespace={second} name={third} />
  if (section === 'endpoints') return <Endpoints />
  return <Empty title="There is no such page">The address {window.location.hash} leads nowhere. Use the menu.</Empty>
}

function Theme() {
  const { setColorScheme } = useMantineColorScheme()
  const scheme = useComputedColorScheme('light', { getInitialValueInEffect: false })
  const other = scheme === 'dark' ? 'light' : 'dark'
  return (
    <Tooltip label={`Use the ${other} theme`}>
      <ActionIcon variant="subtle" color="gray" size="lg" aria-label={`Use the ${other} theme`} onClick={() => setColorScheme(other)}>
        {scheme === 'dark' ? <IconSun size={18} /> : <IconMoon size={18} />}
      </ActionIcon>
    </Tooltip>
  )
}

export function App() {
  const { path } = usePlace()
  const [opened, { toggle, close }] = useDisclosure()
  const connected = useLiveObjects()
  const section = path[0] === 'experiments' ? 'runs' : (path[0] ?? '')
  const here = path.join('/')
  useEffect(close, [here, close])
  useEffect(() => {
    const title = MENU.find((item) => item.path === section)?.label
    document.title = title ? `${title} · shallop` : 'shallop'
  }, [section])
  return (
    <AppShell header={{ height: 52 }} navbar={{ width: 208, breakpoint: 'sm', collapsed: { mobile: !opened } }} padding="lg">
      <AppShell.Header>
        <a className="skip" href="#main" onClick={(event) => {
          event.preventDefault()
          document.getElementById('main')?.focus()
        }}>
          Skip to the content
        </a>
        <Group h="100%" px="md" justify="space-between" wrap="nowrap">
          <Group gap={10} wrap="nowrap">
            <Burger opened={opened} onClick={toggle} hiddenFrom="sm" size="sm" aria-label="Menu" />
            <img src="./favicon.svg" width={24} height={24} alt="" />
            <Text component="a" href="#/" className="plain" fw={700} fz={17} lts={-0.2}>shallop</Text>
          </Group>
          <Group gap={8} wrap="nowrap">
            {!connected && <Badge color="red" variant="light" tt="none" role="status">connection lost, trying again</Badge>}
            <SessionMenu />
            <Theme />
          </Group>
        </Group>
      </AppShell.Header>
      <AppShell.Navbar p="xs" aria-label="Pages">
        {MENU.map(({ path: target, label, icon: Icon }) => (
          <NavLink
            key={target}
            href={`#/${target}`}
            label={label}
            active={section === target}
            aria-current={section === target ? 'page' : undefined}
            leftSection={<Icon size={18} stroke={1.7} />}
            style={{ borderRadius: 8 }}
            mb={2}
          />
        ))}
      </AppShell.Navbar>
      <AppShell.Main id="main" tabIndex={-1} style={{ outline: 'none' }}>
        <Suspense fallback={<Loader m="xl" />}>{page(path)}</Suspense>
      </AppShell.Main>
    </AppShell>
  )
}
